"""Rollouts by vLLM servers over HTTP: token ids and pixels in, token ids and weight versions out."""
