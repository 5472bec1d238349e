"""The bitrate rules: from what the network shows to what voice and video should be, each decision with its reason."""
