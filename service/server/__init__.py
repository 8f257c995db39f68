"""Our uvicorn server and its connections."""
