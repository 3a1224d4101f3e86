"""What single clients have sent or hold is hidden: differential privacy, its ledger, and secure aggregation."""
