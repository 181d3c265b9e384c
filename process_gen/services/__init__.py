"""Models behind OpenAI-compatible endpoints: OpenAI's own, vLLM, any that has chats or images."""
