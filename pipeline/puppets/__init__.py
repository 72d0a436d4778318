"""Photo puppets: photographs of faces with landmarks, moved by facial action units."""
