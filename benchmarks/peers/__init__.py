"""What other projects do, said again in our own words so that it can be measured beside ours."""
