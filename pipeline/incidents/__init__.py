"""From alarms to incidents: group, explain, open, update, resolve. Pure."""
