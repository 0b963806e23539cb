"""Idiomatic asynchronous FastAPI + SQLModel: `async def` handlers, asyncpg, `AsyncSession`.

Nothing expires on commit, so nothing has to be read again.
"""

import os
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Query
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlmodel import desc, select
from sqlmodel.ext.asyncio.session import AsyncSession

from bench.targets.models import Task, TaskCreate, TaskPublic

engine = create_async_engine(
    os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+asyncpg://", 1),
    pool_size=20,
    max_overflow=0,
)
new_session = async_sessionmaker(engine, class_=AsyncSession, expire_on_commit=False)
app = FastAPI()


async def get_session() -> AsyncIterator[AsyncSession]:
    async with new_session() as session:
        yield session


SessionDep = Annotated[AsyncSession, Depends(get_session)]


async def find_task(session: AsyncSession, user_id: str, task_id: int) -> Task:
    statement = select(Task).where(Task.id == task_id, Task.user_id == user_id)
    task = (await session.exec(statement)).first()
    if task is None:
        raise HTTPException(status_code=404, detail="Task not found")
    return task


@app.get("/health")
async def health() -> dict[str, str]:
    return {"status": "ok"}


@app.get("/api/{user_id}/tasks", response_model=list[TaskPublic])
async def list_tasks(
    user_id: str,
    session: SessionDep,
    offset: int = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
) -> object:
    newest_first = desc(Task.created_at), desc(Task.id)
    statement = select(Task).where(Task.user_id == user_id).order_by(*newest_first)
    return (await session.exec(statement.offset(offset).limit(limit))).all()


@app.post("/api/{user_id}/tasks", response_model=TaskPublic, status_code=201)
async def create_task(user_id: str, body: TaskCreate, session: SessionDep) -> object:
    task = Task.model_validate(body, update={"user_id": user_id})
    session.add(task)
    await session.commit()
    return task


@app.get("/api/{user_id}/tasks/{task_id}", response_model=TaskPublic)
async def read_task(user_id: str, task_id: int, session: SessionDep) -> object:
    return await find_task(session, user_id, task_id)


@app.patch("/api/{user_id}/tasks/{task_id}/complete", response_model=TaskPublic)
async def toggle_task(user_id: str, task_id: int, session: SessionDep) -> object:
    task = await find_task(session, user_id, task_id)
    task.toggle()
    session.add(task)
    await session.commit()
    return task
