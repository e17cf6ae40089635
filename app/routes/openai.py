from fastapi import APIRouter

from app.routes.backend import Backend
from app.settings import Settings


def router(backend: Backend, settings: Settings) -> APIRouter:
    return APIRouter()
