"""The demo's word problems."""
