"""What docs/system-v.md says beyond its tables: the words there, and an expression in C that is true if they are.

The names are those of ``system_v.c``, which brings about the condition first; `alone` is an IPC namespace of our own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Claim:
    """Some words of the document, and what must hold."""

    words: str
    holds: str
    condition: str = ""


CLAIMS: Final = [
    Claim("`id` 0 is not refused by glibc", 'ftok("file", 0) != -1'),
    Claim("1 and 257 make the same key", 'ftok("file", 1) == ftok("file", 257)'),
    Claim("128 to 255 make negative ones", 'ftok("file", 128) < 0 && ftok("file", 255) < 0'),
    Claim("-1, which is a possible key", "shmget(-1, 1, IPC_CREAT | 0600) >= 0", "alone"),
    Claim("any size up to its own, 0 for", "shmget(key, 0, 0) == id && shmget(key, 1, 0) == id"),
    Claim("Alone it means nothing", "shmget(key, 0, IPC_EXCL) == id"),
    Claim("*not* cut by the umask", "umask(077), mode_of(shmget(free_key, 1, IPC_CREAT | 0666)) == 0666", "alone"),
    Claim("**0 is a valid id**, and the first one", "id == 0 && sem == 0", "alone"),
    Claim("`SHM_RDONLY` of `shmat` are the same number", "SHM_NORESERVE == SHM_RDONLY"),
    Claim("Each call is a further mapping", "shmat(id, NULL, 0) != at && attachments_of(id) == 2"),
    Claim("the kernel allows no way back", "mprotect(shmat(id, NULL, SHM_RDONLY), page, PROT_WRITE) < 0"),
    Claim("round the address down", "shmat(id, at + 5, SHM_RND | SHM_REMAP) == at"),
    Claim("whoever is attached stays so", "at[0] = 1, shmat(id, NULL, 0) == (void *)-1", "another user"),
    Claim(
        "what it leaves counts as two attachments",
        """({ int large = shmget(free_key, 3 * page, IPC_CREAT | 0600);
              munmap((char *)shmat(large, NULL, 0) + page, page) == 0 && attachments_of(large) == 2; })""",
        "alone",
    ),
    Claim("its key is free at once", "shmctl(id, IPC_RMID, NULL), shmget(key, 0, 0) < 0 && errno == ENOENT"),
    Claim("can still be attached by its id", "shmctl(id, IPC_RMID, NULL), shmat(id, NULL, 0) != (void *)-1"),
    Claim("counts slots of the kernel's table", "shmctl(0, SHM_STAT, &ds) == id && ds.shm_segsz == page", "alone"),
    Claim("the same without the read bit", "alone && shmctl(0, SHM_STAT_ANY, &ds) == id", "another user"),
    Claim("a bit of `shm_perm.mode`, locked", "shmctl(id, SHM_LOCK, NULL) == 0 && mode_of(id) & SHM_LOCKED"),
    Claim("with its last detach", "shmdt(at), shmget(key, 0, 0) < 0", "kernel.shm_rmid_forced is 1"),
    Claim("Keys of semaphores and of segments do not meet", "semget(key, 1, 0) == sem && shmget(key, 0, 0) == id"),
    Claim("Linux starts at 0", "semctl(semget(free_key, 1, IPC_CREAT | 0600), 0, GETVAL) == 0", "alone"),
    Claim(
        "all of them or none",
        """semop(sem, (struct sembuf[]){{0, 1, 0}, {0, -3, IPC_NOWAIT}}, 2) < 0 && semctl(sem, 0, GETVAL) == 1""",
    ),
    Claim(
        "A forked child does not inherit it",
        """({ semop(sem, &(struct sembuf){0, -1, SEM_UNDO}, 1);
              if (fork() == 0)
                  _exit(0);
              wait(NULL);
              semctl(sem, 0, GETVAL) == 0; })""",
    ),
    Claim("unlike a segment, it is gone at once", "semctl(sem, 0, IPC_RMID), semctl(sem, 0, GETVAL) < 0"),
    Claim(
        "(cut by the umask, here)",
        """({ struct stat made;
              umask(022);
              mkfifo("x", 0666);
              stat("x", &made);
              (made.st_mode & 0777) == 0644; })""",
    ),
    Claim("with `O_NONBLOCK` it succeeds at once", 'open("fifo", O_RDONLY | O_NONBLOCK) >= 0'),
    Claim("never waits (Linux", 'open("fifo", O_RDWR) >= 0'),
    Claim(
        "makes a *regular file*",
        """({ struct stat made; fstat(open("x", O_CREAT | O_WRONLY, 0600), &made); S_ISREG(made.st_mode); })""",
    ),
    Claim(
        "each `write` up to PIPE_BUF is one `read`",
        """({ int ends[2];
              pipe2(ends, O_DIRECT);
              write(ends[1], at, 2), write(ends[1], at, 3);
              read(ends[0], at, 9) == 2; })""",
    ),
    Claim("Unknown flags are ignored", "mmap(NULL, page, PROT_READ, MAP_SHARED | 1 << 25, file, 0) != MAP_FAILED"),
    Claim(
        "unknown flags are EOPNOTSUPP",
        "mmap(NULL, page, PROT_READ, MAP_SHARED_VALIDATE | 1 << 25, file, 0) == MAP_FAILED && errno == EOPNOTSUPP",
    ),
    Claim(
        "still shows others' later changes",
        """({ char *seen = mmap(NULL, page, PROT_READ, MAP_PRIVATE, file, 0), before = *seen;
              pwrite(file, "x", 1, 0);
              *seen != before; })""",
    ),
    Claim(
        "the descriptor may be closed afterwards",
        """({ char *seen = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0); close(file), *seen = 1; })""",
    ),
]
