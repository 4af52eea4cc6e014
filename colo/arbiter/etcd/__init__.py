"""An arbiter in etcd."""
