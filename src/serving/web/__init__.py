"""The web page: chat with a vision-language model, score texts, and look through a scored data set."""
