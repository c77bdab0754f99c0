"""What a run learned: probes, verdicts, figures and the report."""
