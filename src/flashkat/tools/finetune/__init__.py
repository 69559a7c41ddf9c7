"""``flashkat finetune``: the flags of ``flashkat train`` that suit a data set, and the weights to start from."""
