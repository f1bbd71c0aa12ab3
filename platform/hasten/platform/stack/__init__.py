"""The local stack: an S3 server, MLflow and Ray on this machine, for everything that settings do not name.

``launcher`` has what other modules call: ``up``, ``down``, ``status``. Nothing is imported here, because
Swift's processes import from this package and rewrite the libraries that they find loaded.
"""
