"""Features of images: extracted, stored, searched, grouped and labelled with."""
