"""The stages: each module has `train(config, ...) -> Run`, reads on its own, and knows no other stage."""
