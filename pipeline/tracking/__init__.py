"""Where an iteration's numbers go beside metrics.jsonl: TensorBoard, Weights & Biases, MLflow."""
