"""What a chapter does with the parts: data made, networks trained, rows measured."""
