"""What MkDocs runs while it builds the site (mkdocs.yml): pages from outside of docs/, generated reference, checks."""
