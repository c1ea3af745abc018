"""What the tests of this folder share is let go of after the last one."""
