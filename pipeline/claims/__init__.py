"""TailorPO's own claims as experiments: what is measured on a base model, and which runs are compared."""
