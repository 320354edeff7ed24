"""Results for people: files, pages, tables, figures. Knows no subject."""
