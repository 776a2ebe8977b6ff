"""The inference server: follows a model alias and answers over HTTP."""
