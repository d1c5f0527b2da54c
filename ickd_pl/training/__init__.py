"""What Lightning trains: the module, its stages, its teacher, and several students that share one."""
