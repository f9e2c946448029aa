"""The command line of customttt: it resolves names, hands objects over, and tells what happened. No tensors here."""
