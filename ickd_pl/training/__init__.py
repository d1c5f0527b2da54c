"""What Lightning trains: the distillation module, its stages, its teacher, and packs of students."""
