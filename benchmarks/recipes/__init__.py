"""Which recipe makes a KAT learn small images better than the ViT of its size, over several seeds?"""
