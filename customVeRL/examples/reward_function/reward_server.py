from src.serving.reward_server import create_app

app = create_app()
