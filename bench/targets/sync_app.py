"""Idiomatic synchronous FastAPI + SQLModel: `def`, session dependency, ORM, refresh, pre-ping."""

import os
from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Query
from sqlmodel import Session, create_engine, desc, select

from bench.targets.models import Task, TaskCreate, TaskPublic

# A session outlives its handler here, so requests beyond the pool wait for connections that only
# free threads can give back: with the default pool of 15 this deadlocks at 64 connections.
engine = create_engine(
    os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg2://", 1),
    pool_pre_ping=True,
    pool_size=64,
    max_overflow=0,
)
app = FastAPI()


def get_session() -> Iterator[Session]:
    with Session(engine) as session:
        yield session


SessionDep = Annotated[Session, Depends(get_session)]


def find_task(session: Session, user_id: str, task_id: int) -> Task:
    task = session.exec(select(Task).where(Task.id == task_id, Task.user_id == user_id)).first()
    if task is None:
        raise HTTPException(status_code=404, detail="Task not found")
    return task


@app.get("/health")
def health() -> dict[str, str]:
    return {"status": "ok"}


@app.get("/api/{user_id}/tasks", response_model=list[TaskPublic])
def list_tasks(
    user_id: str,
    session: SessionDep,
    offset: int = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
) -> object:
    newest_first = desc(Task.created_at), desc(Task.id)
    statement = select(Task).where(Task.user_id == user_id).order_by(*newest_first)
    return session.exec(statement.offset(offset).limit(limit)).all()


@app.post("/api/{user_id}/tasks", response_model=TaskPublic, status_code=201)
def create_task(user_id: str, body: TaskCreate, session: SessionDep) -> object:
    task = Task.model_validate(body, update={"user_id": user_id})
    session.add(task)
    session.commit()
    session.refresh(task)
    return task


@app.get("/api/{user_id}/tasks/{task_id}", response_model=TaskPublic)
def read_task(user_id: str, task_id: int, session: SessionDep) -> object:
    return find_task(session, user_id, task_id)


@app.patch("/api/{user_id}/tasks/{task_id}/complete", response_model=TaskPublic)
def toggle_task(user_id: str, task_id: int, session: SessionDep) -> object:
    task = find_task(session, user_id, task_id)
    task.toggle()
    session.add(task)
    session.commit()
    session.refresh(task)
    return task
