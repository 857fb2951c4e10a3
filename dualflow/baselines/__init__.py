"""What the flow is compared with; networks come from MONAI."""
