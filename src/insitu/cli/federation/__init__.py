"""Commands for federations: to found one, to coordinate it, to be a site of it, and to run plans in it."""
