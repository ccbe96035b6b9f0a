"""A finished folder comes in; its card, its pictures and a verified push to the Hub go out."""
