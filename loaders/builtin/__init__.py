"""The steps themselves: array functions, imported by the loader only when one of them is loaded."""
