"""The pages and tables a person looks at."""
