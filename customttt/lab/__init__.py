"""Research programs: they train `tiny` and its judge, and measure both and the method. Nothing else imports them."""
