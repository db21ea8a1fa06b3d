"""Methods that adapt a pretrained encoder: some leave it frozen and are fitted on its features, others tune it."""
