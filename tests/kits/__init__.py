"""What tests of several packages share: references and small models made without the package."""
