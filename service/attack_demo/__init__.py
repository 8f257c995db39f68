"""An attack on a served model that sees its answers only, to be watched on the page. Knows no request."""
