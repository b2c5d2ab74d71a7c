"""`csd-demo`: a page that decodes before one's eyes, with the target beside."""
