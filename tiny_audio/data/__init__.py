"""Turn indexed utterances into batches: select usable clips, plan their order, augment and collate them."""
