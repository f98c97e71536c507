"""The same models as a user would write them with other libraries."""
