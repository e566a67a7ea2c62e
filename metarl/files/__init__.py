"""Files: what strangers wrote is read with limits and checked against a schema; what we write appears as a whole."""
