"""Files of labelling tools: one module a format, which writes it and reads it back.

`objects` has what is written (images with the objects of their label maps), `reading` what is read, `shapes` the
polygons and RLE of COCO. A new format is a module with the functions of `formats.Format`, and a row in its table. No
torch: tools.export and tools.import_masks fork.
"""
