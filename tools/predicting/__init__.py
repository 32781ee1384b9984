"""What tools.predict alone uses: finding photographs and masks in the background; tools.report reads its folders."""
