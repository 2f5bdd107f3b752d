"""Many replicas in processes of their own: which draws what, and what becomes of the requests of one that is lost."""
