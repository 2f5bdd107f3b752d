"""Says where the training and scoring of the bundled model went: they are no part of the package any more."""

raise SystemExit("the sketch model is trained and scored in a checkout of the project: python -m tools.sketch --help")
