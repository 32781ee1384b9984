"""What tools.report, tools.show and tools.summarize share: drawings of outputs, charts, the page's templates."""
