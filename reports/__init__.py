"""What we tell: diagnostics with gates, comparison with a verdict, one self-contained page."""
