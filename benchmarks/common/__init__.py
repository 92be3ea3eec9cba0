"""What the commands share: machine, meters, recordings, costs of graphs, tables and reports."""
