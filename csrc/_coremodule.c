/*
 * The binding of the C core: the only file that knows Python. It converts arguments, results and errors; what happens
 * is decided in the files it calls. Types and their contracts are documented in shmd/_core.pyi.
 *
 * It is longer than other files because the stable ABI (cp311) wants each type spelled out: in order, Mapping (an
 * attached segment as a buffer), Log (its checked view), Record, Feed and Step (ready records and the awaitable of one
 * step), Cursor (reading), Appender and Reservation (writing), Cell (a value replaced as a whole), and functions on
 * segments and semaphores.
 *
 * Lifetimes: Log holds exports of its Mappings; Cursor, Appender and Reservation hold a use of their Log. So nothing can
 * be unmapped while something could still touch it.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <structmember.h>
#include <sys/epoll.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <time.h>

#include "failpoint.h"
#include "shmd.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14; older headers lack it */
#endif

static PyTypeObject *Mapping_Type, *Log_Type, *Record_Type, *Feed_Type, *Step_Type, *Cursor_Type, *Appender_Type,
    *Reservation_Type, *Cell_Type;
static PyObject *CorruptTopic, *RecordTooLarge, *ClosedError, *ConcurrentUse, *InvalidOption, *ForkedError, *CellBusy,
    *CellEmpty, *CellMismatch;

/* Bumped in every forked child: what was made before the fork is the parent's. */
static unsigned fork_generation;

static void count_fork(void) { fork_generation++; }

/* --- helpers --------------------------------------------------------------------------------------------------------- */

static PyObject *self_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)args;
    (void)kwargs;
    return PyType_GenericNew(type, NULL, NULL);
}

static void self_free(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static int64_t monotonic_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* How long a task may go on without giving the loop a turn. */
struct turn {
    long left, records;
    int64_t started_ns, length_ns;
};

static void turn_start(struct turn *turn) {
    turn->left = turn->records;
    turn->started_ns = monotonic_ns();
}

static int turn_init(struct turn *turn, long records, double seconds) {
    if (records < 1 || !(seconds >= 0 && seconds < 3600)) {
        PyErr_SetString(PyExc_ValueError, "yield_records must be positive and yield_s between 0 and 3600");
        return -1;
    }
    turn->records = records;
    turn->length_ns = (int64_t)(seconds * 1e9);
    turn_start(turn);
    return 0;
}

static int turn_due(const struct turn *turn) {
    return turn->left <= 0 || monotonic_ns() - turn->started_ns >= turn->length_ns;
}

/* --- Mapping --------------------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    char *address;
    Py_ssize_t size;
    Py_ssize_t exports;
    char readonly;
} Mapping;

static int Mapping_init(PyObject *op, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"address", "size", "readonly", NULL};
    Mapping *self = (Mapping *)op;
    unsigned long long address;
    Py_ssize_t size;
    int readonly;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Knp:Mapping", names, &address, &size, &readonly))
        return -1;
    if (address == 0 || size <= 0 || self->exports != 0) {
        PyErr_SetString(PyExc_ValueError, "a mapping has an address, a positive size, and is initialised once");
        return -1;
    }
    self->address = (char *)(uintptr_t)address;
    self->size = size;
    self->readonly = (char)readonly;
    return 0;
}

static int Mapping_getbuffer(PyObject *op, Py_buffer *view, int flags) {
    Mapping *self = (Mapping *)op;
    if (self->address == NULL) {
        view->obj = NULL;
        PyErr_SetString(ClosedError, "the segment is closed");
        return -1;
    }
    if (PyBuffer_FillInfo(view, op, self->address, self->size, self->readonly, flags) != 0)
        return -1;
    self->exports++;
    return 0;
}

static void Mapping_releasebuffer(PyObject *op, Py_buffer *view) {
    (void)view;
    ((Mapping *)op)->exports--;
}

static PyObject *Mapping_prefault(PyObject *op, PyObject *args) {
    Mapping *self = (Mapping *)op;
    Py_ssize_t offset, length;
    int result, saved;
    if (!PyArg_ParseTuple(args, "nn:prefault", &offset, &length))
        return NULL;
    if (self->address == NULL || offset < 0 || length < 0 || offset > self->size || length > self->size - offset) {
        PyErr_SetString(PyExc_ValueError, "outside the mapping");
        return NULL;
    }
    self->exports++; /* keeps it mapped while the GIL is away */
    Py_BEGIN_ALLOW_THREADS
    result = madvise(self->address + offset, (size_t)length, MADV_POPULATE_WRITE);
    saved = errno;
    Py_END_ALLOW_THREADS
    self->exports--;
    if (result != 0) {
        errno = saved;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

static PyObject *Mapping_invalidate(PyObject *op, PyObject *unused) {
    Mapping *self = (Mapping *)op;
    (void)unused;
    if (self->exports > 0)
        return PyErr_Format(PyExc_BufferError, "%zd views of the segment are alive: release them before closing it",
                            self->exports);
    self->address = NULL;
    Py_RETURN_NONE;
}

static PyObject *Mapping_address(PyObject *op, void *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong((unsigned long long)(uintptr_t)((Mapping *)op)->address);
}

static PyObject *Mapping_readonly(PyObject *op, void *unused) {
    (void)unused;
    return PyBool_FromLong(((Mapping *)op)->readonly);
}

static PyObject *Mapping_size(PyObject *op, void *unused) {
    (void)unused;
    return PyLong_FromSsize_t(((Mapping *)op)->size);
}

static PyObject *Mapping_exports(PyObject *op, void *unused) {
    (void)unused;
    return PyLong_FromSsize_t(((Mapping *)op)->exports);
}

static PyMethodDef Mapping_methods[] = {
    {"prefault", Mapping_prefault, METH_VARARGS, "Populate pages for writing, without the GIL."},
    {"invalidate", Mapping_invalidate, METH_NOARGS, "Nothing is behind this buffer any more; BufferError under a view."},
    {NULL, NULL, 0, NULL},
};
static PyGetSetDef Mapping_getset[] = {
    {"address", Mapping_address, NULL, NULL, NULL}, {"size", Mapping_size, NULL, NULL, NULL},
    {"readonly", Mapping_readonly, NULL, NULL, NULL}, {"exports", Mapping_exports, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot Mapping_slots[] = {
    {Py_tp_doc, "An attached segment as a buffer that counts its exports."},
    {Py_tp_new, self_new}, {Py_tp_init, Mapping_init}, {Py_tp_dealloc, self_free},
    {Py_tp_methods, Mapping_methods}, {Py_tp_getset, Mapping_getset},
    {Py_bf_getbuffer, Mapping_getbuffer}, {Py_bf_releasebuffer, Mapping_releasebuffer}, {0, NULL},
};
static PyType_Spec Mapping_spec = {"shmd._core.Mapping", sizeof(Mapping), 0, Py_TPFLAGS_DEFAULT, Mapping_slots};

/* --- Log ------------------------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    struct shmd_log log;
    Py_buffer log_view, ctl_view;
    PyObject *name;
    Py_ssize_t users;
    unsigned generation; /* of this process when it was opened */
    char open, writable;
} Log;

/* An exception for a result that is no answer; always NULL. */
static PyObject *raise_result(int result, Log *log, size_t size) {
    if (result == -EMSGSIZE) {
        PyObject *message = PyUnicode_FromFormat("%zu bytes are over the record limit of topic %R, which is %llu bytes", size,
                                                 log->name, (unsigned long long)log->log.payload_max);
        PyObject *error = message == NULL ? NULL
                                          : PyObject_CallFunction(RecordTooLarge, "Os", message,
                                                                  "a record or batch takes at most a quarter of its topic: "
                                                                  "create the topic with a larger size=");
        if (error != NULL)
            PyErr_SetObject(RecordTooLarge, error);
        Py_XDECREF(error);
        Py_XDECREF(message);
    } else if (result == -EUCLEAN) {
        PyErr_Format(CorruptTopic, "the memory of topic %R holds what no publisher writes", log->name);
    } else if (result == -ESTALE) {
        PyErr_Format(ClosedError, "this subscriber's slot in topic %R belongs to somebody else by now", log->name);
    } else if (result == -ENOMEM) {
        PyErr_NoMemory();
    } else {
        errno = -result;
        PyErr_SetFromErrno(PyExc_OSError);
    }
    return NULL;
}

static int log_inherited(const Log *log) { return log->generation != fork_generation; }

static int raise_inherited(void) {
    PyErr_SetString(ForkedError, "this client was made before the fork: it is the parent's; connect anew in the child");
    return -1;
}

static Log *log_check(PyObject *op) {
    Log *log = (Log *)op;
    if (log->open && !log_inherited(log))
        return log;
    if (log->open) {
        raise_inherited();
        return NULL;
    }
    PyErr_SetString(ClosedError, "the topic is closed");
    return NULL;
}

static int check_id(const char *what, Py_ssize_t bytes) {
    if (bytes == 16)
        return 0;
    PyErr_Format(PyExc_ValueError, "%s must be 16 bytes", what);
    return -1;
}

static int Log_init(PyObject *op, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"log", "ctl", "name", "topic_id", "capacity", "flags", NULL};
    Log *self = (Log *)op;
    PyObject *log, *ctl, *name;
    const char *topic_id;
    Py_ssize_t topic_id_bytes;
    unsigned long long capacity;
    unsigned int flags;
    struct shmd_identity identity = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O$Uy#KI:Log", names, Mapping_Type, &log, &ctl, &name, &topic_id,
                                     &topic_id_bytes, &capacity, &flags) ||
        check_id("topic_id", topic_id_bytes) != 0)
        return -1;
    if (self->open || (ctl != Py_None && !PyObject_TypeCheck(ctl, Mapping_Type))) {
        PyErr_SetString(PyExc_TypeError, "ctl must be a Mapping or None, and a Log is initialised once");
        return -1;
    }
    if (PyObject_GetBuffer(log, &self->log_view, PyBUF_SIMPLE) != 0)
        return -1;
    if (ctl != Py_None && PyObject_GetBuffer(ctl, &self->ctl_view, PyBUF_WRITABLE) != 0) {
        PyBuffer_Release(&self->log_view);
        return -1;
    }
    identity.capacity = capacity;
    identity.flags = flags;
    memcpy(identity.topic_id, topic_id, 16);
    int result = shmd_log_open(&self->log, self->log_view.buf, (size_t)self->log_view.len, self->ctl_view.buf,
                               (size_t)self->ctl_view.len, &identity);
    if (result != 0) {
        PyBuffer_Release(&self->log_view);
        if (self->ctl_view.obj != NULL)
            PyBuffer_Release(&self->ctl_view);
        PyErr_Format(CorruptTopic, "the segments of topic %R are not the ones the daemon described", name);
        return -1;
    }
    self->name = Py_NewRef(name);
    self->writable = (char)!self->log_view.readonly;
    self->generation = fork_generation;
    self->open = 1;
    return 0;
}

static void log_release(Log *self) {
    if (!self->open)
        return;
    self->open = 0;
    PyBuffer_Release(&self->log_view);
    if (self->ctl_view.obj != NULL)
        PyBuffer_Release(&self->ctl_view);
}

static void Log_dealloc(PyObject *op) {
    Log *self = (Log *)op;
    log_release(self);
    Py_CLEAR(self->name);
    self_free(op);
}

static PyObject *Log_close(PyObject *op, PyObject *unused) {
    Log *self = (Log *)op;
    (void)unused;
    if (self->users > 0)
        return PyErr_Format(PyExc_BufferError, "%zd readers and writers of the topic are open", self->users);
    log_release(self);
    Py_RETURN_NONE;
}

static Log *log_use(PyObject *op) {
    Log *log = log_check(op);
    if (log == NULL)
        return NULL;
    Py_INCREF(op);
    log->users++;
    return log;
}

static void log_unuse(Log **logp) {
    if (*logp == NULL)
        return;
    (*logp)->users--;
    Py_CLEAR(*logp);
}

static PyObject *Log_stat(PyObject *op, PyObject *unused) {
    Log *self = log_check(op);
    struct shmd_stat s;
    (void)unused;
    if (self == NULL)
        return NULL;
    shmd_log_stat(&self->log, &s);
    return Py_BuildValue("{sKsKsKsKsKsKsKsIsK}", "head", s.head, "tail", s.tail, "first_seq", s.first_seq, "last_seq",
                         s.last_seq, "last_time_ns", s.last_time_ns, "published", s.published, "published_bytes",
                         s.published_bytes, "lock_owner_tid", s.lock_owner_tid, "takeovers", s.takeovers);
}

static PyObject *Log_slot_grant(PyObject *op, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"slot", "incarnation", "live", "tethered", NULL};
    Log *self = log_check(op);
    unsigned int slot, incarnation;
    int live, tethered;
    if (self == NULL ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "II$pp:slot_grant", names, &slot, &incarnation, &live, &tethered))
        return NULL;
    int result = shmd_slot_grant(&self->log, slot, incarnation, live, tethered);
    if (result != 0)
        return raise_result(result, self, 0);
    Py_RETURN_NONE;
}

static PyObject *Log_slot_release(PyObject *op, PyObject *args) {
    Log *self = log_check(op);
    unsigned int slot, incarnation;
    if (self == NULL || !PyArg_ParseTuple(args, "II:slot_release", &slot, &incarnation))
        return NULL;
    shmd_slot_release(&self->log, slot, incarnation);
    Py_RETURN_NONE;
}

static PyObject *Log_slot_untether(PyObject *op, PyObject *args) {
    Log *self = log_check(op);
    unsigned int slot, incarnation;
    if (self == NULL || !PyArg_ParseTuple(args, "II:slot_untether", &slot, &incarnation))
        return NULL;
    return PyBool_FromLong(shmd_slot_untether(&self->log, slot, incarnation));
}

static PyObject *Log_slot_bury(PyObject *op, PyObject *args) {
    Log *self = log_check(op);
    unsigned int slot, incarnation;
    if (self == NULL || !PyArg_ParseTuple(args, "II:slot_bury", &slot, &incarnation))
        return NULL;
    return PyBool_FromLong(shmd_slot_bury(&self->log, slot, incarnation));
}

static PyObject *Log_next_live(PyObject *op, PyObject *arg) {
    Log *self = log_check(op);
    unsigned long from = PyLong_AsUnsignedLong(arg);
    uint32_t incarnation;
    if (self == NULL || PyErr_Occurred())
        return NULL;
    uint32_t slot = from < UINT32_MAX ? (uint32_t)from : UINT32_MAX;
    if (shmd_next_live(&self->log, &slot, &incarnation) != SHMD_OK)
        Py_RETURN_NONE;
    return Py_BuildValue("II", slot, incarnation);
}

static PyObject *Log_has_subscribers(PyObject *op, PyObject *unused) {
    Log *self = log_check(op);
    uint32_t slot = 0, incarnation;
    (void)unused;
    if (self == NULL)
        return NULL;
    return PyBool_FromLong(shmd_next_live(&self->log, &slot, &incarnation) == SHMD_OK);
}

static PyObject *Log_slowest(PyObject *op, PyObject *unused) {
    Log *self = log_check(op);
    uint32_t slot, incarnation;
    (void)unused;
    if (self == NULL)
        return NULL;
    if (shmd_slowest_slot(&self->log, &slot, &incarnation) != SHMD_OK)
        Py_RETURN_NONE;
    return Py_BuildValue("II", slot, incarnation);
}

static PyObject *Log_declare_owner_dead(PyObject *op, PyObject *arg) {
    Log *self = log_check(op);
    unsigned long tid = PyLong_AsUnsignedLong(arg);
    if (self == NULL || PyErr_Occurred())
        return NULL;
    if (!self->writable) {
        PyErr_SetString(PyExc_ValueError, "freeing a lock needs a writable log");
        return NULL;
    }
    return PyBool_FromLong(tid <= UINT32_MAX && shmd_lock_declare_dead(&self->log.header->lock, (uint32_t)tid));
}

static PyObject *Log_slot_stat(PyObject *op, PyObject *arg) {
    Log *self = log_check(op);
    unsigned long slot = PyLong_AsUnsignedLong(arg);
    if (self == NULL || PyErr_Occurred())
        return NULL;
    if (self->log.ctl == NULL || slot >= self->log.slot_count)
        return PyErr_Format(PyExc_ValueError, "no slot %lu", slot);
    uint64_t tail = load_relaxed(&self->log.header->tail);
    uint64_t word = load_relaxed(&self->log.slots[slot].word);
    uint64_t lag = word & SHMD_WORD_LIVE ? tail - shmd_word_position(word, tail) : 0;
    return Py_BuildValue("INNKK", shmd_word_incarnation(word), PyBool_FromLong((word & SHMD_WORD_LIVE) != 0),
                         PyBool_FromLong((word & SHMD_WORD_TETHERED) != 0), lag,
                         (unsigned long long)load_relaxed(&self->log.slots[slot].lost));
}

static PyObject *log_ring(PyObject *op, PyObject *arg, enum shmd_sleepers who) {
    Log *self = log_check(op);
    int fd = (int)PyLong_AsLong(arg);
    if (self == NULL || PyErr_Occurred())
        return NULL;
    if (self->log.ctl == NULL)
        return PyErr_Format(PyExc_ValueError, "ringing needs the ctl, which tells who sleeps");
    return PyBool_FromLong(shmd_bell_ring(&self->log, shmd_bell_of(&self->log, fd), who));
}

static PyObject *Log_ring_readers(PyObject *op, PyObject *arg) { return log_ring(op, arg, SHMD_READERS); }

static PyObject *Log_ring_publishers(PyObject *op, PyObject *arg) { return log_ring(op, arg, SHMD_PUBLISHERS); }

static PyObject *record_new(const struct shmd_view *view, PyObject *topic, PyObject *decode, PyObject *explain);

static PyObject *Log_newest(PyObject *op, PyObject *args) {
    Log *self = log_check(op);
    PyObject *decode, *explain = Py_None;
    struct shmd_view view;
    uint8_t *buffer = NULL;
    size_t buffer_bytes = 0;
    PyObject *record = NULL;
    if (self == NULL || !PyArg_ParseTuple(args, "O|O:newest", &decode, &explain))
        return NULL;
    int result = shmd_newest(&self->log, &buffer, &buffer_bytes, &view);
    if (result == SHMD_OK)
        record = record_new(&view, self->name, decode, explain);
    else if (result < 0)
        raise_result(result, self, 0);
    else
        record = Py_NewRef(Py_None);
    free(buffer);
    return record;
}

static PyObject *Log_name(PyObject *op, void *unused) {
    (void)unused;
    return Py_NewRef(((Log *)op)->name != NULL ? ((Log *)op)->name : Py_None);
}

static PyObject *Log_capacity(PyObject *op, void *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(((Log *)op)->log.capacity);
}

static PyObject *Log_record_size_max(PyObject *op, void *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(((Log *)op)->log.payload_max);
}

static PyMethodDef Log_methods[] = {
    {"stat", Log_stat, METH_NOARGS, "Counters and positions."},
    {"newest", Log_newest, METH_VARARGS, "The newest record, or None."},
    {"slot_grant", (PyCFunction)(void (*)(void))Log_slot_grant, METH_VARARGS | METH_KEYWORDS, "Daemon: give a slot away."},
    {"slot_release", Log_slot_release, METH_VARARGS, "Daemon: take a slot back."},
    {"slot_untether", Log_slot_untether, METH_VARARGS, "Take the tether away, if this incarnation has one."},
    {"slot_bury", Log_slot_bury, METH_VARARGS, "Count this incarnation, proven dead, as no subscriber any more."},
    {"next_live", Log_next_live, METH_O, "(slot, incarnation) of the first subscriber from this slot on, or None."},
    {"has_subscribers", Log_has_subscribers, METH_NOARGS, "Whether any subscriber has joined."},
    {"slowest", Log_slowest, METH_NOARGS, "(slot, incarnation) of the slowest tethered cursor, or None."},
    {"declare_owner_dead", Log_declare_owner_dead, METH_O, "Mark the lock as its owner's death would, if TID holds it."},
    {"slot_stat", Log_slot_stat, METH_O, "(incarnation, live, tethered, lag_bytes, lost)."},
    {"ring_readers", Log_ring_readers, METH_O, "Wake all who sleep for records."},
    {"ring_publishers", Log_ring_publishers, METH_O, "Wake all who sleep for room."},
    {"close", Log_close, METH_NOARGS, "Give the mappings back."},
    {NULL, NULL, 0, NULL},
};
static PyGetSetDef Log_getset[] = {
    {"name", Log_name, NULL, NULL, NULL},
    {"capacity", Log_capacity, NULL, NULL, NULL},
    {"record_size_max", Log_record_size_max, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot Log_slots[] = {
    {Py_tp_doc, "A topic's log and ctl segments, checked."},
    {Py_tp_new, self_new}, {Py_tp_init, Log_init}, {Py_tp_dealloc, Log_dealloc},
    {Py_tp_methods, Log_methods}, {Py_tp_getset, Log_getset}, {0, NULL},
};
static PyType_Spec Log_spec = {"shmd._core.Log", sizeof(Log), 0, Py_TPFLAGS_DEFAULT, Log_slots};

/* --- Record ---------------------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    PyObject *raw, *value, *topic, *decode, *explain;
    uint64_t seq, time_ns, lost;
    uint32_t publisher;
} Record;

static PyObject *record_new(const struct shmd_view *view, PyObject *topic, PyObject *decode, PyObject *explain) {
    PyObject *raw = PyBytes_FromStringAndSize((const char *)view->payload, (Py_ssize_t)view->length);
    if (raw == NULL)
        return NULL;
    Record *self = PyObject_GC_New(Record, Record_Type);
    if (self == NULL) {
        Py_DECREF(raw);
        return NULL;
    }
    self->raw = raw;
    self->value = NULL;
    self->topic = Py_NewRef(topic);
    self->decode = Py_NewRef(decode);
    self->explain = Py_NewRef(explain);
    self->seq = view->seq;
    self->time_ns = view->time_ns;
    self->lost = view->lost;
    self->publisher = view->publisher;
    return (PyObject *)self; /* tracked by the collector once it has a value: before that it can be in no cycle */
}

static int Record_traverse(PyObject *op, visitproc visit, void *arg) {
    Record *self = (Record *)op;
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(self->value);
    Py_VISIT(self->decode);
    Py_VISIT(self->explain);
    return 0;
}

static int Record_clear(PyObject *op) {
    Py_CLEAR(((Record *)op)->value);
    return 0;
}

static void Record_dealloc(PyObject *op) {
    Record *self = (Record *)op;
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    Py_XDECREF(self->raw);
    Py_XDECREF(self->value);
    Py_XDECREF(self->topic);
    Py_XDECREF(self->decode);
    Py_XDECREF(self->explain);
    PyObject_GC_Del(op);
    Py_DECREF(type);
}

/* Replace the exception that `decode` raised by the one that `explain` makes of it, with the first as its cause. */
static void explain_failure(Record *self) {
    PyObject *type, *cause, *traceback;
    if (self->explain == Py_None || !PyErr_ExceptionMatches(PyExc_Exception))
        return;
    PyErr_Fetch(&type, &cause, &traceback);
    PyErr_NormalizeException(&type, &cause, &traceback);
    PyObject *error = PyObject_CallFunctionObjArgs(self->explain, self->raw, cause, NULL);
    if (error != NULL) {
        PyException_SetCause(error, Py_NewRef(cause));
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    }
    Py_XDECREF(error);
    Py_XDECREF(type);
    Py_XDECREF(cause);
    Py_XDECREF(traceback);
}

static PyObject *Record_value(PyObject *op, void *unused) {
    Record *self = (Record *)op;
    (void)unused;
    if (self->value == NULL) {
        PyObject *value = PyObject_CallFunctionObjArgs(self->decode, self->raw, NULL);
        if (value == NULL) {
            explain_failure(self);
            return NULL;
        }
        if (self->value == NULL) { /* the decoder is anyone's code: it may have asked for the value itself */
            self->value = value;
            if (!PyObject_GC_IsTracked(op))
                PyObject_GC_Track(op);
        } else {
            Py_DECREF(value);
        }
    }
    return Py_NewRef(self->value);
}

static PyObject *Record_time(PyObject *op, void *unused) {
    (void)unused;
    return PyFloat_FromDouble((double)((Record *)op)->time_ns / 1e9);
}

static PyObject *Record_repr(PyObject *op) {
    Record *self = (Record *)op;
    return PyUnicode_FromFormat("<Record %U seq=%llu publisher=%u lost=%llu %zd bytes>", self->topic,
                                (unsigned long long)self->seq, self->publisher, (unsigned long long)self->lost,
                                PyBytes_Size(self->raw));
}

static PyMemberDef Record_members[] = {
    {"raw", T_OBJECT_EX, offsetof(Record, raw), READONLY, NULL},
    {"topic", T_OBJECT_EX, offsetof(Record, topic), READONLY, NULL},
    {"seq", T_ULONGLONG, offsetof(Record, seq), READONLY, NULL},
    {"time_ns", T_ULONGLONG, offsetof(Record, time_ns), READONLY, NULL},
    {"lost", T_ULONGLONG, offsetof(Record, lost), READONLY, NULL},
    {"publisher", T_UINT, offsetof(Record, publisher), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};
static PyGetSetDef Record_getset[] = {
    {"value", Record_value, NULL, NULL, NULL},
    {"time", Record_time, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyMethodDef generic_alias_method[] = {
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot Record_slots[] = {
    {Py_tp_doc, "One record; value is decoded when it is first asked for."},
    {Py_tp_dealloc, Record_dealloc}, {Py_tp_traverse, Record_traverse}, {Py_tp_clear, Record_clear},
    {Py_tp_repr, Record_repr}, {Py_tp_members, Record_members}, {Py_tp_getset, Record_getset},
    {Py_tp_methods, generic_alias_method}, {0, NULL},
};
static PyType_Spec Record_spec = {"shmd._core.Record", sizeof(Record), 0,
                                  Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, Record_slots};

/* --- Feed ------------------------------------------------------------------------------------------------------------ */

typedef struct {
    PyObject_HEAD
    PyObject **records; /* a stretch [first, first + ready) of an array of `room` */
    size_t first, ready, room;
    uint64_t lost;
    struct turn turn;
} Feed;

static int Feed_init(PyObject *op, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"yield_records", "yield_s", NULL};
    long records;
    double seconds;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "$ld:Feed", names, &records, &seconds))
        return -1;
    return turn_init(&((Feed *)op)->turn, records, seconds);
}

static int Feed_traverse(PyObject *op, visitproc visit, void *arg) {
    Feed *self = (Feed *)op;
    Py_VISIT(Py_TYPE(op));
    for (size_t i = 0; i < self->ready; i++)
        Py_VISIT(self->records[self->first + i]);
    return 0;
}

static int Feed_clear(PyObject *op) {
    Feed *self = (Feed *)op;
    while (self->ready > 0) {
        self->ready--;
        Py_DECREF(self->records[self->first++]);
    }
    self->first = 0;
    return 0;
}

static void Feed_dealloc(PyObject *op) {
    PyObject_GC_UnTrack(op);
    Feed_clear(op);
    PyMem_Free(((Feed *)op)->records);
    self_free(op);
}

static int feed_make_room(Feed *self) {
    if (self->first + self->ready < self->room)
        return 0;
    if (self->first > self->room / 2) {
        memmove(self->records, self->records + self->first, self->ready * sizeof *self->records);
        self->first = 0;
        return 0;
    }
    size_t room = self->room ? self->room * 2 : 1024;
    PyObject **grown = PyMem_Realloc(self->records, room * sizeof *grown);
    if (grown == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    self->records = grown;
    self->room = room;
    return 0;
}

/* Takes the reference. */
static int feed_push(Feed *self, PyObject *record) {
    if (record == NULL || feed_make_room(self) != 0) {
        Py_XDECREF(record);
        return -1;
    }
    self->records[self->first + self->ready++] = record;
    return 0;
}

static PyObject *feed_pop(Feed *self) {
    PyObject *record = self->records[self->first++];
    if (--self->ready == 0)
        self->first = 0;
    self->turn.left--;
    self->lost += ((Record *)record)->lost;
    return record;
}

/* A record that was taken but never handed over; takes the reference. */
static void feed_put_back(Feed *self, PyObject *record) {
    self->lost -= ((Record *)record)->lost;
    if (self->first == 0) {
        if (feed_make_room(self) != 0) {
            PyErr_WriteUnraisable((PyObject *)self);
            Py_DECREF(record);
            return;
        }
        memmove(self->records + 1, self->records, self->ready * sizeof *self->records);
        self->first = 1;
    }
    self->records[--self->first] = record;
    self->ready++;
}

static PyObject *Feed_pop(PyObject *op, PyObject *unused) {
    Feed *self = (Feed *)op;
    (void)unused;
    return self->ready > 0 ? feed_pop(self) : Py_NewRef(Py_None);
}

static PyObject *Feed_take(PyObject *op, PyObject *arg) {
    Feed *self = (Feed *)op;
    Py_ssize_t count = PyLong_AsSsize_t(arg);
    if (count < 0) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "count must not be negative");
        return NULL;
    }
    if ((size_t)count > self->ready)
        count = (Py_ssize_t)self->ready;
    PyObject *list = PyList_New(count);
    for (Py_ssize_t i = 0; list != NULL && i < count; i++)
        PyList_SetItem(list, i, feed_pop(self));
    return list;
}

static PyObject *Feed_clear_method(PyObject *op, PyObject *unused) {
    (void)unused;
    Feed_clear(op);
    Py_RETURN_NONE;
}

static PyObject *Feed_turned(PyObject *op, PyObject *unused) {
    (void)unused;
    turn_start(&((Feed *)op)->turn);
    Py_RETURN_NONE;
}

static PyObject *Feed_due(PyObject *op, void *unused) {
    (void)unused;
    return PyBool_FromLong(turn_due(&((Feed *)op)->turn));
}

static PyObject *Feed_ready(PyObject *op, void *unused) {
    (void)unused;
    return PyLong_FromSize_t(((Feed *)op)->ready);
}

static PyObject *Feed_lost(PyObject *op, void *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(((Feed *)op)->lost);
}

/* --- Step: the awaitable of one ready record -------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    Feed *feed;
    PyObject *record;
} Step;

static Step *spare_step; /* one is alive at a time, nearly always */

static PyObject *step_new(Feed *feed) {
    Step *self = spare_step;
    if (self != NULL) {
        spare_step = NULL;
    } else {
        self = PyObject_New(Step, Step_Type);
        if (self == NULL)
            return NULL;
    }
    Py_INCREF((PyObject *)feed);
    self->feed = feed;
    self->record = feed_pop(feed);
    return (PyObject *)self;
}

static void Step_dealloc(PyObject *op) {
    Step *self = (Step *)op;
    if (self->record != NULL) /* never awaited: nothing was consumed */
        feed_put_back(self->feed, self->record);
    self->record = NULL;
    Py_CLEAR(self->feed);
    if (spare_step == NULL) {
        spare_step = (Step *)Py_NewRef(op);
        return;
    }
    PyTypeObject *type = Py_TYPE(op);
    PyObject_Free(op);
    Py_DECREF(type);
}

static PySendResult Step_send(PyObject *op, PyObject *arg, PyObject **resultp) {
    Step *self = (Step *)op;
    (void)arg;
    *resultp = self->record;
    self->record = NULL;
    if (*resultp != NULL)
        return PYGEN_RETURN;
    PyErr_SetString(PyExc_RuntimeError, "this step was awaited already");
    return PYGEN_ERROR;
}

static PyObject *Step_iternext(PyObject *op) {
    PyObject *record;
    if (Step_send(op, NULL, &record) == PYGEN_RETURN) {
        PyErr_SetObject(PyExc_StopIteration, record);
        Py_DECREF(record);
    }
    return NULL;
}

static PyObject *return_self(PyObject *op) { return Py_NewRef(op); }

static PyType_Slot Step_slots[] = {
    {Py_tp_dealloc, Step_dealloc}, {Py_am_await, return_self}, {Py_am_send, Step_send},
    {Py_tp_iter, return_self}, {Py_tp_iternext, Step_iternext}, {0, NULL},
};
static PyType_Spec Step_spec = {"shmd._core.Step", sizeof(Step), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                Step_slots};

static PyObject *Feed_anext(PyObject *op) {
    Feed *self = (Feed *)op;
    if (self->ready > 0 && !turn_due(&self->turn))
        return step_new(self);
    return PyObject_CallMethod(op, "_step", NULL);
}

static PyMethodDef Feed_methods[] = {
    {"pop", Feed_pop, METH_NOARGS, "The next ready record, or None."},
    {"take", Feed_take, METH_O, "Up to so many ready records."},
    {"clear", Feed_clear_method, METH_NOARGS, "Drop what is ready."},
    {"turned", Feed_turned, METH_NOARGS, "The loop had its turn."},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyGetSetDef Feed_getset[] = {
    {"due", Feed_due, NULL, NULL, NULL},
    {"ready", Feed_ready, NULL, NULL, NULL},
    {"lost", Feed_lost, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot Feed_slots[] = {
    {Py_tp_doc, "Ready records in order, and the asynchronous iterator over them."},
    {Py_tp_new, self_new}, {Py_tp_init, Feed_init}, {Py_tp_dealloc, Feed_dealloc}, {Py_tp_traverse, Feed_traverse},
    {Py_tp_clear, Feed_clear}, {Py_am_aiter, return_self}, {Py_am_anext, Feed_anext}, {Py_tp_methods, Feed_methods},
    {Py_tp_getset, Feed_getset}, {0, NULL},
};
static PyType_Spec Feed_spec = {"shmd._core.Feed", sizeof(Feed), 0,
                                Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, Feed_slots};

/* --- Cursor ---------------------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    Log *log;
    PyObject *decode, *explain;
    struct shmd_reader reader;
    uint64_t scan_from;
} Cursor;

static int Cursor_init(PyObject *op, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"log", "slot", "incarnation", "tethered", "space_fd", "decode", "explain", NULL};
    Cursor *self = (Cursor *)op;
    PyObject *log, *decode, *explain = Py_None;
    unsigned int slot, incarnation;
    int tethered, space_fd;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!$IIpiOO:Cursor", names, Log_Type, &log, &slot, &incarnation, &tethered,
                                     &space_fd, &decode, &explain))
        return -1;
    if (self->log != NULL || (self->log = log_use(log)) == NULL) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "a Cursor is initialised once");
        return -1;
    }
    const struct shmd_log *view = &self->log->log;
    int result = shmd_reader_init(&self->reader, view, slot, incarnation, tethered, shmd_bell_of(view, space_fd));
    if (result != 0) {
        raise_result(result, self->log, 0);
        log_unuse(&self->log);
        return -1;
    }
    self->decode = Py_NewRef(decode);
    self->explain = Py_NewRef(explain);
    return 0;
}

static int Cursor_traverse(PyObject *op, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(((Cursor *)op)->decode);
    Py_VISIT(((Cursor *)op)->explain);
    return 0;
}

static int Cursor_clear(PyObject *op) {
    Py_CLEAR(((Cursor *)op)->decode);
    Py_CLEAR(((Cursor *)op)->explain);
    return 0;
}

static void cursor_release(Cursor *self) {
    if (self->log == NULL)
        return;
    if (!log_inherited(self->log)) /* the slot is the parent's */
        shmd_leave(&self->reader);
    shmd_reader_free(&self->reader);
    log_unuse(&self->log);
}

static void Cursor_dealloc(PyObject *op) {
    PyObject_GC_UnTrack(op);
    cursor_release((Cursor *)op);
    Cursor_clear(op);
    self_free(op);
}

static Cursor *cursor_check(PyObject *op) {
    Cursor *self = (Cursor *)op;
    if (self->log != NULL && self->decode != NULL && !log_inherited(self->log))
        return self;
    if (self->log != NULL && log_inherited(self->log)) {
        raise_inherited();
        return NULL;
    }
    PyErr_SetString(ClosedError, "the cursor is closed");
    return NULL;
}

static PyObject *Cursor_seek_start(PyObject *op, PyObject *unused) {
    Cursor *self = cursor_check(op);
    (void)unused;
    if (self == NULL)
        return NULL;
    shmd_seek_start(&self->reader);
    Py_RETURN_NONE;
}

static PyObject *Cursor_seek_position(PyObject *op, PyObject *args) {
    Cursor *self = cursor_check(op);
    unsigned long long position, next_seq;
    if (self == NULL || !PyArg_ParseTuple(args, "KK:seek_position", &position, &next_seq))
        return NULL;
    shmd_seek_position(&self->reader, position, next_seq);
    Py_RETURN_NONE;
}

/* A seek that may be overtaken: False then. */
static PyObject *seek_result(Cursor *self, int result) {
    return result < 0 ? raise_result(result, self->log, 0) : PyBool_FromLong(result == SHMD_OK);
}

static PyObject *Cursor_seek_new(PyObject *op, PyObject *unused) {
    Cursor *self = cursor_check(op);
    (void)unused;
    return self == NULL ? NULL : seek_result(self, shmd_seek_new(&self->reader));
}

static PyObject *Cursor_seek_last(PyObject *op, PyObject *unused) {
    Cursor *self = cursor_check(op);
    (void)unused;
    return self == NULL ? NULL : seek_result(self, shmd_seek_last(&self->reader));
}

static PyObject *Cursor_seek_all(PyObject *op, PyObject *unused) {
    Cursor *self = cursor_check(op);
    (void)unused;
    return self == NULL ? NULL : seek_result(self, shmd_seek_all(&self->reader));
}

static PyObject *seek_scan(PyObject *op, PyObject *args, enum shmd_seek by) {
    Cursor *self = cursor_check(op);
    unsigned long long value, steps;
    if (self == NULL || !PyArg_ParseTuple(args, "KK", &value, &steps))
        return NULL;
    int result = shmd_seek_scan(&self->reader, by, value, steps, &self->scan_from);
    if (result != SHMD_AGAIN)
        self->scan_from = 0;
    return seek_result(self, result);
}

static PyObject *Cursor_seek_seq(PyObject *op, PyObject *args) { return seek_scan(op, args, SHMD_SEEK_SEQ); }

static PyObject *Cursor_seek_time(PyObject *op, PyObject *args) { return seek_scan(op, args, SHMD_SEEK_TIME); }

static PyObject *Cursor_join(PyObject *op, PyObject *unused) {
    Cursor *self = cursor_check(op);
    (void)unused;
    return self == NULL ? NULL : seek_result(self, shmd_join(&self->reader));
}

static PyObject *Cursor_read(PyObject *op, PyObject *args) {
    Cursor *self = cursor_check(op);
    PyObject *feed;
    unsigned long long bytes_max;
    struct shmd_view view;
    long count = 0;
    if (self == NULL || !PyArg_ParseTuple(args, "O!K:read", Feed_Type, &feed, &bytes_max))
        return NULL;
    int result = shmd_read_first(&self->reader, (size_t)bytes_max, &view);
    bool begun = result == SHMD_OK;
    for (; result == SHMD_OK; result = shmd_read_next(&self->reader, &view)) {
        if (feed_push((Feed *)feed, record_new(&view, self->log->name, self->decode, self->explain)) != 0)
            return NULL;
        count++;
    }
    if (begun)
        shmd_read_end(&self->reader);
    if (result < 0 && count == 0) /* else what came before is handed out first; the next read finds the damage again */
        return raise_result(result, self->log, 0);
    return PyLong_FromLong(count);
}

static PyObject *Cursor_arm(PyObject *op, PyObject *unused) {
    Cursor *self = cursor_check(op);
    (void)unused;
    return self == NULL ? NULL : PyBool_FromLong(shmd_reader_arm(&self->reader) == SHMD_OK);
}

static PyObject *Cursor_leave(PyObject *op, PyObject *unused) {
    Cursor *self = cursor_check(op);
    (void)unused;
    if (self == NULL)
        return NULL;
    shmd_leave(&self->reader);
    Py_RETURN_NONE;
}

static PyObject *Cursor_close(PyObject *op, PyObject *unused) {
    (void)unused;
    cursor_release((Cursor *)op);
    Py_RETURN_NONE;
}

static PyObject *Cursor_available(PyObject *op, void *unused) {
    Cursor *self = cursor_check(op);
    (void)unused;
    return self == NULL ? NULL : PyBool_FromLong(shmd_available(&self->reader));
}

static PyObject *Cursor_tethered(PyObject *op, void *unused) {
    (void)unused;
    return PyBool_FromLong(((Cursor *)op)->reader.tethered);
}

static PyObject *Cursor_position(PyObject *op, void *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(((Cursor *)op)->reader.position);
}

static PyObject *Cursor_next_seq(PyObject *op, void *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(((Cursor *)op)->reader.next_seq);
}

static PyObject *Cursor_lag_bytes(PyObject *op, void *unused) {
    Cursor *self = cursor_check(op);
    (void)unused;
    if (self == NULL)
        return NULL;
    return PyLong_FromUnsignedLongLong(load_relaxed(&self->log->log.header->tail) - self->reader.position);
}

static PyMethodDef Cursor_methods[] = {
    {"seek_start", Cursor_seek_start, METH_NOARGS, "Before record 1."},
    {"seek_position", Cursor_seek_position, METH_VARARGS, "Where another cursor of this topic stood."},
    {"seek_new", Cursor_seek_new, METH_NOARGS, "Behind the newest record. False: overtaken, call again."},
    {"seek_last", Cursor_seek_last, METH_NOARGS, "Before the newest record. False: overtaken, call again."},
    {"seek_all", Cursor_seek_all, METH_NOARGS, "Before the oldest record. False: overtaken, call again."},
    {"seek_seq", Cursor_seek_seq, METH_VARARGS, "Before the record of this number. False: call again."},
    {"seek_time", Cursor_seek_time, METH_VARARGS, "Before the first record at or after this time. False: call again."},
    {"join", Cursor_join, METH_NOARGS, "Store the cursor. False: seek again."},
    {"read", Cursor_read, METH_VARARGS, "Copy records out into a feed."},
    {"arm", Cursor_arm, METH_NOARGS, "About to sleep. False: read again."},
    {"leave", Cursor_leave, METH_NOARGS, "Take the cursor out of the ctl."},
    {"close", Cursor_close, METH_NOARGS, "Leave, and give the log back."},
    {NULL, NULL, 0, NULL},
};
static int bell_from(PyObject *value, int *fdp) {
    long fd = value == NULL ? -1 : PyLong_AsLong(value);
    if (PyErr_Occurred())
        return -1;
    *fdp = (int)fd;
    return 0;
}

static PyObject *Cursor_space_fd(PyObject *op, void *unused) {
    (void)unused;
    return PyLong_FromLong(((Cursor *)op)->reader.bell.fd);
}

static int Cursor_set_space_fd(PyObject *op, PyObject *value, void *unused) {
    (void)unused;
    return bell_from(value, &((Cursor *)op)->reader.bell.fd);
}

static PyGetSetDef Cursor_getset[] = {
    {"space_fd", Cursor_space_fd, Cursor_set_space_fd, NULL, NULL},
    {"available", Cursor_available, NULL, NULL, NULL}, {"tethered", Cursor_tethered, NULL, NULL, NULL},
    {"position", Cursor_position, NULL, NULL, NULL},   {"next_seq", Cursor_next_seq, NULL, NULL, NULL},
    {"lag_bytes", Cursor_lag_bytes, NULL, NULL, NULL}, {NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot Cursor_slots[] = {
    {Py_tp_doc, "A subscriber's place in one log."},
    {Py_tp_new, self_new}, {Py_tp_init, Cursor_init}, {Py_tp_dealloc, Cursor_dealloc}, {Py_tp_traverse, Cursor_traverse},
    {Py_tp_clear, Cursor_clear}, {Py_tp_methods, Cursor_methods}, {Py_tp_getset, Cursor_getset}, {0, NULL},
};
static PyType_Spec Cursor_spec = {"shmd._core.Cursor", sizeof(Cursor), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
                                  Cursor_slots};

/* --- Appender -------------------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    Log *log;
    struct shmd_appender appender;
    struct turn turn;
    char reserved; /* a Reservation is open */
} Appender;

static int Appender_init(PyObject *op, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"log", "publisher", "bell_fd", "yield_records", "yield_s", NULL};
    Appender *self = (Appender *)op;
    PyObject *log;
    unsigned int publisher;
    int bell_fd;
    long records;
    double seconds;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!$Iild:Appender", names, Log_Type, &log, &publisher, &bell_fd, &records,
                                     &seconds) ||
        turn_init(&self->turn, records, seconds) != 0)
        return -1;
    if (self->log != NULL || ((Log *)log)->log.ctl == NULL || !((Log *)log)->writable) {
        PyErr_SetString(PyExc_ValueError, "publishing needs a writable log and its ctl, and an Appender is initialised once");
        return -1;
    }
    self->log = log_use(log);
    if (self->log == NULL)
        return -1;
    shmd_appender_init(&self->appender, &self->log->log, publisher, shmd_bell_of(&self->log->log, bell_fd));
    return 0;
}

static void Appender_dealloc(PyObject *op) {
    log_unuse(&((Appender *)op)->log);
    self_free(op);
}

static Appender *appender_check(PyObject *op) {
    Appender *self = (Appender *)op;
    if (self->log != NULL && !self->reserved && !log_inherited(self->log))
        return self;
    if (self->log != NULL && log_inherited(self->log))
        raise_inherited();
    else if (self->log == NULL)
        PyErr_SetString(ClosedError, "the publisher is closed");
    else
        PyErr_SetString(ConcurrentUse, "a reserve() of this publisher is open");
    return NULL;
}

static PyObject *append_result(Appender *self, int result, uint64_t seq, size_t size) {
    if (result == SHMD_OK)
        return PyLong_FromUnsignedLongLong(seq);
    return result < 0 ? raise_result(result, self->log, size) : PyLong_FromLong(-result);
}

static PyObject *Appender_append(PyObject *op, PyObject *payload) {
    Appender *self = appender_check(op);
    struct shmd_bytes bytes;
    Py_buffer view = {.obj = NULL};
    uint64_t seq = 0;
    if (self == NULL)
        return NULL;
    if (PyBytes_CheckExact(payload)) {
        bytes.data = (const uint8_t *)PyBytes_AsString(payload);
        bytes.size = (size_t)PyBytes_Size(payload);
    } else {
        if (PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE) != 0)
            return NULL;
        bytes.data = view.buf;
        bytes.size = (size_t)view.len;
    }
    int result = shmd_append(&self->appender, &bytes, 1, &seq);
    size_t size = bytes.size;
    if (view.obj != NULL)
        PyBuffer_Release(&view);
    self->turn.left--;
    return append_result(self, result, seq, size);
}

static void release_views(Py_buffer *views, struct shmd_bytes *payloads, Py_ssize_t count) {
    for (Py_ssize_t i = 0; i < count; i++)
        PyBuffer_Release(&views[i]);
    PyMem_Free(views);
    PyMem_Free(payloads);
}

static PyObject *Appender_append_many(PyObject *op, PyObject *sequence) {
    Appender *self = appender_check(op);
    PyObject *list = self == NULL ? NULL : PySequence_List(sequence);
    uint64_t seq = 0;
    size_t total = 0;
    if (list == NULL)
        return NULL;
    Py_ssize_t count = PyList_Size(list), held = 0;
    Py_buffer *views = PyMem_Calloc((size_t)count + 1, sizeof *views);
    struct shmd_bytes *payloads = PyMem_Calloc((size_t)count + 1, sizeof *payloads);
    PyObject *answer = NULL;
    if (views == NULL || payloads == NULL) {
        PyErr_NoMemory();
    } else if (count == 0) {
        PyErr_SetString(PyExc_ValueError, "nothing to append");
    } else {
        while (held < count && PyObject_GetBuffer(PyList_GetItem(list, held), &views[held], PyBUF_SIMPLE) == 0) {
            payloads[held] = (struct shmd_bytes){views[held].buf, (size_t)views[held].len};
            total += payloads[held++].size;
        }
        if (held == count) {
            int result = shmd_append(&self->appender, payloads, (size_t)count, &seq);
            self->turn.left -= (long)count;
            answer = append_result(self, result, seq, total);
        }
    }
    release_views(views, payloads, held);
    Py_DECREF(list);
    return answer;
}

static PyObject *Appender_arm_space(PyObject *op, PyObject *unused) {
    Appender *self = appender_check(op);
    (void)unused;
    return self == NULL ? NULL : PyBool_FromLong(shmd_appender_arm(&self->appender) == SHMD_OK);
}

static PyObject *Appender_turned(PyObject *op, PyObject *unused) {
    (void)unused;
    turn_start(&((Appender *)op)->turn);
    Py_RETURN_NONE;
}

static PyObject *Appender_due(PyObject *op, void *unused) {
    (void)unused;
    return PyBool_FromLong(turn_due(&((Appender *)op)->turn));
}

static PyObject *Appender_close(PyObject *op, PyObject *unused) {
    Appender *self = (Appender *)op;
    (void)unused;
    if (self->reserved)
        return PyErr_Format(PyExc_BufferError, "a reserve() of this publisher is open");
    log_unuse(&self->log);
    Py_RETURN_NONE;
}

/* --- Reservation ----------------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    Appender *appender; /* NULL once committed or abandoned */
    uint8_t *payload;
    Py_ssize_t size, exports;
} Reservation;

static PyObject *Appender_reserve(PyObject *op, PyObject *arg) {
    Appender *self = appender_check(op);
    size_t size = PyLong_AsSize_t(arg);
    uint8_t *payload;
    if (self == NULL || PyErr_Occurred())
        return NULL;
    int result = shmd_reserve(&self->appender, size, &payload);
    if (result == -EINVAL) {
        PyErr_SetString(InvalidOption, "reserve() needs an exclusive topic: only its one publisher may write in place");
        return NULL;
    }
    if (result != SHMD_OK)
        return append_result(self, result, 0, size);
    Reservation *reservation = PyObject_New(Reservation, Reservation_Type);
    if (reservation == NULL)
        return NULL;
    Py_INCREF(op);
    reservation->appender = self;
    reservation->payload = payload;
    reservation->size = (Py_ssize_t)size;
    reservation->exports = 0;
    self->reserved = 1;
    return (PyObject *)reservation;
}

static void reservation_end(Reservation *self) {
    if (self->appender != NULL)
        self->appender->reserved = 0;
    Py_CLEAR(self->appender);
}

static void Reservation_dealloc(PyObject *op) {
    PyTypeObject *type = Py_TYPE(op);
    reservation_end((Reservation *)op);
    PyObject_Free(op);
    Py_DECREF(type);
}

static int Reservation_getbuffer(PyObject *op, Py_buffer *view, int flags) {
    Reservation *self = (Reservation *)op;
    if (self->appender == NULL) {
        view->obj = NULL;
        PyErr_SetString(ClosedError, "the reservation is over");
        return -1;
    }
    if (PyBuffer_FillInfo(view, op, self->payload, self->size, 0, flags) != 0)
        return -1;
    self->exports++;
    return 0;
}

static void Reservation_releasebuffer(PyObject *op, Py_buffer *view) {
    (void)view;
    ((Reservation *)op)->exports--;
}

static PyObject *Reservation_commit(PyObject *op, PyObject *unused) {
    Reservation *self = (Reservation *)op;
    uint64_t seq = 0;
    (void)unused;
    if (self->appender == NULL) {
        PyErr_SetString(ClosedError, "the reservation is over");
        return NULL;
    }
    if (log_inherited(self->appender->log)) {
        raise_inherited();
        return NULL;
    }
    if (self->exports > 0)
        return PyErr_Format(PyExc_BufferError, "%zd views of the reservation are alive: release them before the block ends",
                            self->exports);
    Appender *appender = self->appender;
    int result = shmd_commit_reserved(&appender->appender, (size_t)self->size, &seq);
    appender->turn.left--;
    PyObject *answer = append_result(appender, result, seq, (size_t)self->size);
    reservation_end(self);
    return answer;
}

static PyObject *Reservation_abandon(PyObject *op, PyObject *unused) {
    (void)unused;
    if (((Reservation *)op)->exports > 0)
        return PyErr_Format(PyExc_BufferError, "views of the reservation are alive: they could write into later records");
    reservation_end((Reservation *)op);
    Py_RETURN_NONE;
}

static PyMethodDef Reservation_methods[] = {
    {"commit", Reservation_commit, METH_NOARGS, "Make the record visible."},
    {"abandon", Reservation_abandon, METH_NOARGS, "Forget it."},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot Reservation_slots[] = {
    {Py_tp_doc, "A writable buffer in the log, not yet visible to anybody."},
    {Py_tp_dealloc, Reservation_dealloc}, {Py_tp_methods, Reservation_methods},
    {Py_bf_getbuffer, Reservation_getbuffer}, {Py_bf_releasebuffer, Reservation_releasebuffer}, {0, NULL},
};
static PyType_Spec Reservation_spec = {"shmd._core.Reservation", sizeof(Reservation), 0,
                                       Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, Reservation_slots};

static PyMethodDef Appender_methods[] = {
    {"append", Appender_append, METH_O, "Publish one payload: its sequence number, FULL or BUSY."},
    {"append_many", Appender_append_many, METH_O, "Publish several, all or nothing: the last one's number, FULL or BUSY."},
    {"arm_space", Appender_arm_space, METH_NOARGS, "About to sleep for room. False: try again."},
    {"reserve", Appender_reserve, METH_O, "Room for one record, to be written in place."},
    {"turned", Appender_turned, METH_NOARGS, "The loop had its turn."},
    {"close", Appender_close, METH_NOARGS, "Give the log back."},
    {NULL, NULL, 0, NULL},
};
static PyObject *Appender_bell_fd(PyObject *op, void *unused) {
    (void)unused;
    return PyLong_FromLong(((Appender *)op)->appender.bell.fd);
}

static int Appender_set_bell_fd(PyObject *op, PyObject *value, void *unused) {
    (void)unused;
    return bell_from(value, &((Appender *)op)->appender.bell.fd);
}

static PyObject *Appender_fifo(PyObject *op, void *unused) {
    (void)unused;
    return PyLong_FromUnsignedLong(((Appender *)op)->appender.fifo);
}

static int Appender_set_fifo(PyObject *op, PyObject *value, void *unused) {
    (void)unused;
    unsigned long number = value == NULL ? ULONG_MAX : PyLong_AsUnsignedLong(value);
    if (number > UINT32_MAX) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "not a publisher's number");
        return -1;
    }
    ((Appender *)op)->appender.fifo = (uint32_t)number;
    return 0;
}

static PyObject *Appender_unheard(PyObject *op, void *unused) {
    (void)unused;
    return PyBool_FromLong(((Appender *)op)->appender.unheard);
}

static PyGetSetDef Appender_getset[] = {
    {"due", Appender_due, NULL, NULL, NULL},
    {"unheard", Appender_unheard, NULL, NULL, NULL},
    {"bell_fd", Appender_bell_fd, Appender_set_bell_fd, NULL, NULL},
    {"fifo", Appender_fifo, Appender_set_fifo, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot Appender_slots[] = {
    {Py_tp_doc, "A publisher's end of one log."},
    {Py_tp_new, self_new}, {Py_tp_init, Appender_init}, {Py_tp_dealloc, Appender_dealloc},
    {Py_tp_methods, Appender_methods}, {Py_tp_getset, Appender_getset}, {0, NULL},
};
static PyType_Spec Appender_spec = {"shmd._core.Appender", sizeof(Appender), 0, Py_TPFLAGS_DEFAULT, Appender_slots};

/* --- Cell ------------------------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    struct shmd_cell cell;
    Py_buffer view;
    Py_ssize_t offset;
    char open;
} Cell;

static int Cell_init(PyObject *op, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"memory", "offset", "size", NULL};
    Cell *self = (Cell *)op;
    PyObject *memory;
    Py_ssize_t offset, size;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O$nn:Cell", names, &memory, &offset, &size))
        return -1;
    if (self->open) {
        PyErr_SetString(PyExc_TypeError, "a Cell is initialised once");
        return -1;
    }
    if (PyObject_GetBuffer(memory, &self->view, PyBUF_SIMPLE) != 0)
        return -1;
    if (offset < 0 || offset > self->view.len || size < 0 ||
        shmd_cell_open(&self->cell, (char *)self->view.buf + offset, (size_t)(self->view.len - offset), (size_t)size) != 0) {
        PyErr_Format(InvalidOption, "no cell for values of %zd bytes can be at offset %zd of %zd bytes", size, offset,
                     self->view.len);
        PyBuffer_Release(&self->view);
        return -1;
    }
    self->offset = offset;
    self->open = 1;
    return 0;
}

static PyObject *Cell_close(PyObject *op, PyObject *unused) {
    Cell *self = (Cell *)op;
    (void)unused;
    if (self->open) {
        self->open = 0;
        PyBuffer_Release(&self->view);
    }
    Py_RETURN_NONE;
}

static void Cell_dealloc(PyObject *op) {
    Py_XDECREF(Cell_close(op, NULL));
    self_free(op);
}

static Cell *cell_check(PyObject *op) {
    if (((Cell *)op)->open)
        return (Cell *)op;
    PyErr_SetString(ClosedError, "the cell is closed");
    return NULL;
}

static PyObject *raise_cell(int result, const Cell *self, const char *busy) {
    if (result == -EUCLEAN)
        return PyErr_Format(CellMismatch, "at offset %zd lies something else than a cell for values of %zu bytes",
                            self->offset, self->cell.size);
    PyErr_SetString(result == SHMD_EMPTY ? CellEmpty : CellBusy, result == SHMD_EMPTY ? "nobody has stored a value yet" : busy);
    return NULL;
}

static PyObject *Cell_store(PyObject *op, PyObject *value) {
    Cell *self = cell_check(op);
    Py_buffer bytes;
    if (self == NULL)
        return NULL;
    if (self->view.readonly)
        return PyErr_Format(PyExc_TypeError, "the cell's memory is read-only");
    if (PyObject_GetBuffer(value, &bytes, PyBUF_SIMPLE) != 0)
        return NULL;
    int fits = (size_t)bytes.len == self->cell.size;
    int result = fits ? shmd_cell_store(&self->cell, bytes.buf) : 0;
    Py_ssize_t length = bytes.len;
    PyBuffer_Release(&bytes);
    if (!fits)
        return PyErr_Format(PyExc_ValueError, "%zd bytes for a cell of %zu", length, self->cell.size);
    if (result != SHMD_OK)
        return raise_cell(result, self, "another writer is storing a value");
    Py_RETURN_NONE;
}

static PyObject *Cell_load(PyObject *op, PyObject *unused) {
    Cell *self = cell_check(op);
    uint64_t version = 0;
    (void)unused;
    PyObject *value = self == NULL ? NULL : PyBytes_FromStringAndSize(NULL, (Py_ssize_t)self->cell.size);
    if (value == NULL)
        return NULL;
    int result = shmd_cell_load(&self->cell, PyBytes_AsString(value), &version);
    if (result == SHMD_OK)
        return Py_BuildValue("NK", value, (unsigned long long)version);
    Py_DECREF(value);
    return raise_cell(result, self, "the writer stores faster than the value can be copied");
}

static PyObject *Cell_version(PyObject *op, void *unused) {
    Cell *self = cell_check(op);
    (void)unused;
    return self == NULL ? NULL : PyLong_FromUnsignedLongLong(shmd_cell_version(&self->cell));
}

static PyObject *Cell_writer(PyObject *op, void *unused) {
    Cell *self = cell_check(op);
    (void)unused;
    return self == NULL ? NULL : PyLong_FromUnsignedLong(shmd_cell_writer(&self->cell));
}

static PyMethodDef Cell_methods[] = {
    {"store", Cell_store, METH_O, "Replace the value."},
    {"load", Cell_load, METH_NOARGS, "A copy of the value, and its version."},
    {"close", Cell_close, METH_NOARGS, "Give the memory back."},
    {NULL, NULL, 0, NULL},
};
static PyGetSetDef Cell_getset[] = {
    {"version", Cell_version, NULL, NULL, NULL}, {"writer", Cell_writer, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot Cell_slots[] = {
    {Py_tp_doc, "A value that is replaced as a whole."},
    {Py_tp_new, self_new}, {Py_tp_init, Cell_init}, {Py_tp_dealloc, Cell_dealloc},
    {Py_tp_methods, Cell_methods}, {Py_tp_getset, Cell_getset}, {0, NULL},
};
static PyType_Spec Cell_spec = {"shmd._core.Cell", sizeof(Cell), 0, Py_TPFLAGS_DEFAULT, Cell_slots};

/* --- functions ------------------------------------------------------------------------------------------------------- */

static PyObject *core_log_format(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"log", "capacity", "flags", "instance_id", "topic_id", "created_ns", "name", NULL};
    PyObject *log;
    Py_buffer view;
    const char *instance_id, *topic_id, *name;
    Py_ssize_t instance_id_bytes, topic_id_bytes, name_bytes;
    unsigned long long capacity, created_ns;
    unsigned int flags;
    struct shmd_identity identity = {0};
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!$KIy#y#Ks#:log_format", names, Mapping_Type, &log, &capacity, &flags,
                                     &instance_id, &instance_id_bytes, &topic_id, &topic_id_bytes, &created_ns, &name,
                                     &name_bytes) ||
        check_id("instance_id", instance_id_bytes) != 0 || check_id("topic_id", topic_id_bytes) != 0 ||
        PyObject_GetBuffer(log, &view, PyBUF_WRITABLE) != 0)
        return NULL;
    identity.capacity = capacity;
    identity.flags = flags;
    identity.created_ns = created_ns;
    identity.name = name;
    identity.name_bytes = (size_t)name_bytes;
    memcpy(identity.instance_id, instance_id, 16);
    memcpy(identity.topic_id, topic_id, 16);
    int result = shmd_log_format(view.buf, (size_t)view.len, &identity);
    PyBuffer_Release(&view);
    if (result != 0)
        return PyErr_Format(PyExc_ValueError, "a log of capacity %llu with this name does not fit", capacity);
    Py_RETURN_NONE;
}

static PyObject *core_ctl_format(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"ctl", "slots", "topic_id", NULL};
    PyObject *ctl;
    Py_buffer view;
    const char *topic_id;
    Py_ssize_t topic_id_bytes;
    unsigned int slots;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!$Iy#:ctl_format", names, Mapping_Type, &ctl, &slots, &topic_id,
                                     &topic_id_bytes) ||
        check_id("topic_id", topic_id_bytes) != 0 || PyObject_GetBuffer(ctl, &view, PyBUF_WRITABLE) != 0)
        return NULL;
    int result = shmd_ctl_format(view.buf, (size_t)view.len, slots, (const uint8_t *)topic_id);
    PyBuffer_Release(&view);
    if (result != 0)
        return PyErr_Format(PyExc_ValueError, "a ctl of %u slots does not fit", slots);
    Py_RETURN_NONE;
}

static PyObject *core_ctl_size_bytes(PyObject *module, PyObject *arg) {
    unsigned long slots = PyLong_AsUnsignedLong(arg);
    (void)module;
    if (PyErr_Occurred())
        return NULL;
    if (slots > SHMD_SLOTS_MAX)
        return PyErr_Format(PyExc_ValueError, "%lu slots are over the limit of %u", slots, SHMD_SLOTS_MAX);
    return PyLong_FromSize_t(shmd_ctl_bytes((uint32_t)slots));
}

/* The word at offset of a buffer, held in *viewp. NULL with an exception set if there is none. */
static shmd_a64 *word_at(PyObject *buffer, Py_ssize_t offset, int flags, Py_buffer *viewp) {
    if (PyObject_GetBuffer(buffer, viewp, flags) != 0)
        return NULL;
    if (offset >= 0 && offset % 8 == 0 && offset <= viewp->len - 8)
        return (shmd_a64 *)(void *)((char *)viewp->buf + offset);
    PyErr_Format(PyExc_ValueError, "no aligned word at offset %zd of %zd bytes", offset, viewp->len);
    PyBuffer_Release(viewp);
    return NULL;
}

static PyObject *core_store_word(PyObject *module, PyObject *args) {
    PyObject *mapping;
    Py_ssize_t offset;
    unsigned long long value;
    Py_buffer view;
    (void)module;
    if (!PyArg_ParseTuple(args, "O!nK:store_word", Mapping_Type, &mapping, &offset, &value))
        return NULL;
    shmd_a64 *word = word_at(mapping, offset, PyBUF_WRITABLE, &view);
    if (word == NULL)
        return NULL;
    store_release(word, value); /* SYNC: pairs with the acquire in core_load_word, in another process */
    PyBuffer_Release(&view);
    Py_RETURN_NONE;
}

static PyObject *core_load_word(PyObject *module, PyObject *args) {
    PyObject *mapping;
    Py_ssize_t offset;
    Py_buffer view;
    (void)module;
    if (!PyArg_ParseTuple(args, "O!n:load_word", Mapping_Type, &mapping, &offset))
        return NULL;
    shmd_a64 *word = word_at(mapping, offset, PyBUF_SIMPLE, &view);
    if (word == NULL)
        return NULL;
    uint64_t value = load_acquire(word); /* SYNC: pairs with the release in core_store_word */
    PyBuffer_Release(&view);
    return PyLong_FromUnsignedLongLong(value);
}

#define BELLS_PER_POLL 64

static PyObject *core_bells_rung(PyObject *module, PyObject *arg) {
    int set = (int)PyLong_AsLong(arg);
    struct epoll_event events[BELLS_PER_POLL];
    (void)module;
    if (PyErr_Occurred())
        return NULL;
    int count = epoll_wait(set, events, BELLS_PER_POLL, 0);
    if (count < 0 && errno != EINTR)
        return PyErr_SetFromErrno(PyExc_OSError);
    PyObject *fds = PyTuple_New(count > 0 ? count : 0);
    for (Py_ssize_t i = 0; fds != NULL && i < count; i++)
        PyTuple_SetItem(fds, i, PyLong_FromLong(events[i].data.fd));
    return fds;
}

static PyObject *core_shm_stat(PyObject *module, PyObject *arg) {
    int id = (int)PyLong_AsLong(arg);
    struct shmid_ds ds;
    (void)module;
    if (PyErr_Occurred())
        return NULL;
    if (shmctl(id, IPC_STAT, &ds) != 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    return Py_BuildValue("inIIIIIKiiLLL", ds.shm_perm.__key, (Py_ssize_t)ds.shm_segsz, ds.shm_perm.uid, ds.shm_perm.gid,
                         ds.shm_perm.cuid, ds.shm_perm.cgid, (unsigned int)ds.shm_perm.mode,
                         (unsigned long long)ds.shm_nattch, ds.shm_cpid, ds.shm_lpid, (long long)ds.shm_atime,
                         (long long)ds.shm_dtime, (long long)ds.shm_ctime);
}

static PyObject *core_shm_errno(PyObject *module, PyObject *args) {
    int id, readonly, error = 0;
    (void)module;
    if (!PyArg_ParseTuple(args, "ip:shm_errno", &id, &readonly))
        return NULL;
    void *address = shmat(id, NULL, readonly ? SHM_RDONLY : 0);
    if (address == (void *)-1)
        error = errno;
    else
        (void)shmdt(address);
    return PyLong_FromLong(error);
}

static PyObject *core_shm_set(PyObject *module, PyObject *args) {
    struct shmid_ds ds = {0};
    unsigned int uid, gid, mode;
    int id;
    (void)module;
    if (!PyArg_ParseTuple(args, "iIII:shm_set", &id, &uid, &gid, &mode))
        return NULL;
    ds.shm_perm.uid = uid;
    ds.shm_perm.gid = gid;
    ds.shm_perm.mode = mode & 0777u;
    if (shmctl(id, IPC_SET, &ds) != 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyObject *core_cell_size_bytes(PyObject *module, PyObject *arg) {
    Py_ssize_t size = PyLong_AsSsize_t(arg);
    (void)module;
    if (size == -1 && PyErr_Occurred())
        return NULL;
    return PyLong_FromSize_t(size < 0 ? 0 : shmd_cell_bytes((size_t)size));
}

union semun { /* which semctl(2) has its callers define */
    int val;
    struct semid_ds *buf;
};

static PyObject *core_sem_stat(PyObject *module, PyObject *arg) {
    int id = (int)PyLong_AsLong(arg);
    struct semid_ds ds;
    (void)module;
    if (PyErr_Occurred())
        return NULL;
    int known = semctl(id, 0, IPC_STAT, (union semun){.buf = &ds});
    int value = known == 0 ? semctl(id, 0, GETVAL) : -1;
    int waiting = value >= 0 ? semctl(id, 0, GETNCNT) : -1;
    int last_pid = waiting >= 0 ? semctl(id, 0, GETPID) : -1;
    if (last_pid < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    return Py_BuildValue("iKIIIIIiiiLL", ds.sem_perm.__key, (unsigned long long)ds.sem_nsems, ds.sem_perm.uid,
                         ds.sem_perm.gid, ds.sem_perm.cuid, ds.sem_perm.cgid, (unsigned int)ds.sem_perm.mode, value, waiting,
                         last_pid, (long long)ds.sem_otime, (long long)ds.sem_ctime);
}

static PyObject *core_sem_set(PyObject *module, PyObject *args) {
    struct semid_ds ds = {0};
    unsigned int uid, gid, mode;
    int id;
    (void)module;
    if (!PyArg_ParseTuple(args, "iIII:sem_set", &id, &uid, &gid, &mode))
        return NULL;
    ds.sem_perm.uid = uid;
    ds.sem_perm.gid = gid;
    ds.sem_perm.mode = mode & 0777u;
    if (semctl(id, 0, IPC_SET, (union semun){.buf = &ds}) != 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

#define EXPORT_FIELD(type, f) \
    if (result == 0) { \
        PyObject *place = Py_BuildValue("nn", (Py_ssize_t)offsetof(struct type, f), (Py_ssize_t)sizeof(((struct type *)0)->f)); \
        result = place == NULL ? -1 : PyDict_SetItemString(fields, #f, place); \
        Py_XDECREF(place); \
    }
#define EXPORT_LOG(f, at) EXPORT_FIELD(shmd_log_header, f)
#define EXPORT_RECORD(f, at) EXPORT_FIELD(shmd_record, f)
#define EXPORT_CTL(f, at) EXPORT_FIELD(shmd_ctl_header, f)
#define EXPORT_SLOT(f, at) EXPORT_FIELD(shmd_slot, f)
#define EXPORT_CELL(f, at) EXPORT_FIELD(shmd_cell_header, f)
#define EXPORT_STRUCT(table, name, FIELDS, EXPORT) \
    if (result == 0) { \
        PyObject *fields = PyDict_New(); \
        result = fields == NULL ? -1 : 0; \
        FIELDS(EXPORT) \
        result = result == 0 ? PyDict_SetItemString(table, name, fields) : result; \
        Py_XDECREF(fields); \
    }

static PyObject *core_layout(PyObject *module, PyObject *unused) {
    PyObject *table = PyDict_New();
    int result = table == NULL ? -1 : 0;
    (void)module;
    (void)unused;
    EXPORT_STRUCT(table, "log", SHMD_LOG_FIELDS, EXPORT_LOG)
    EXPORT_STRUCT(table, "record", SHMD_RECORD_FIELDS, EXPORT_RECORD)
    EXPORT_STRUCT(table, "ctl", SHMD_CTL_FIELDS, EXPORT_CTL)
    EXPORT_STRUCT(table, "slot", SHMD_SLOT_FIELDS, EXPORT_SLOT)
    EXPORT_STRUCT(table, "cell", SHMD_CELL_FIELDS, EXPORT_CELL)
    if (result != 0)
        Py_CLEAR(table);
    return table;
}

#ifdef SHMD_FAILPOINTS
static const char *failpoint_names[] = {
#define SHMD_FAILPOINT_NAME(name) #name,
    SHMD_FAILPOINT_LIST(SHMD_FAILPOINT_NAME)
};
#define FAILPOINTS SHMD_FP_COUNT
#else
static const char *failpoint_names[1];
#define FAILPOINTS 0
#endif

static PyObject *core_failpoints(PyObject *module, PyObject *unused) {
    PyObject *names = PyTuple_New(FAILPOINTS);
    (void)module;
    (void)unused;
    for (Py_ssize_t i = 0; names != NULL && i < FAILPOINTS; i++)
        PyTuple_SetItem(names, i, PyUnicode_FromString(failpoint_names[i]));
    return names;
}

static PyObject *core_failpoint_set(PyObject *module, PyObject *args) {
    const char *name, *action;
    unsigned int skip = 0;
    (void)module;
    if (!PyArg_ParseTuple(args, "ss|I:failpoint_set", &name, &action, &skip))
        return NULL;
#ifdef SHMD_FAILPOINTS
    int what = strcmp(action, "off") == 0 ? SHMD_FP_OFF : strcmp(action, "kill") == 0 ? SHMD_FP_KILL
             : strcmp(action, "stop") == 0 ? SHMD_FP_STOP : -1;
    for (int i = 0; what >= 0 && i < FAILPOINTS; i++) {
        if (strcmp(name, failpoint_names[i]) == 0) {
            shmd_failpoint_set((enum shmd_failpoint)i, (enum shmd_failpoint_action)what, skip);
            Py_RETURN_NONE;
        }
    }
#endif
    return PyErr_Format(PyExc_ValueError, "no failpoint %s with action %s in this build", name, action);
}

#define KEYWORDS(f) ((PyCFunction)(void (*)(void))(f)), METH_VARARGS | METH_KEYWORDS

static PyMethodDef core_methods[] = {
    {"log_format", KEYWORDS(core_log_format), "Write an empty log's header page."},
    {"ctl_format", KEYWORDS(core_ctl_format), "Write an empty ctl segment."},
    {"ctl_size_bytes", core_ctl_size_bytes, METH_O, "Size of a ctl segment with so many slots."},
    {"store_word", core_store_word, METH_VARARGS, "Store 8 bytes at once, with release."},
    {"load_word", core_load_word, METH_VARARGS, "Load 8 bytes at once, with acquire."},
    {"bells_rung", core_bells_rung, METH_O, "Descriptors in an epoll instance that are ready now."},
    {"shm_stat", core_shm_stat, METH_O, "shmctl(IPC_STAT)."},
    {"shm_errno", core_shm_errno, METH_VARARGS, "Why attaching fails."},
    {"shm_set", core_shm_set, METH_VARARGS, "shmctl(IPC_SET)."},
    {"sem_stat", core_sem_stat, METH_O, "semctl(IPC_STAT), and the value."},
    {"sem_set", core_sem_set, METH_VARARGS, "semctl(IPC_SET)."},
    {"cell_size_bytes", core_cell_size_bytes, METH_O, "Bytes that a cell takes."},
    {"layout", core_layout, METH_NOARGS, "Offsets and sizes as compiled."},
    {"failpoints", core_failpoints, METH_NOARGS, "Names of all failpoints; empty in a production build."},
    {"failpoint_set", core_failpoint_set, METH_VARARGS, "Test build: die or stop at a failpoint."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef core_module = {PyModuleDef_HEAD_INIT, "shmd._core", "The C core of shmd.", -1, core_methods,
                                         NULL, NULL, NULL, NULL};

static int import_errors(void) {
    PyObject *errors = PyImport_ImportModule("shmd.errors");
    if (errors == NULL)
        return -1;
    CorruptTopic = PyObject_GetAttrString(errors, "CorruptTopic");
    RecordTooLarge = PyObject_GetAttrString(errors, "RecordTooLarge");
    ClosedError = PyObject_GetAttrString(errors, "ClosedError");
    ConcurrentUse = PyObject_GetAttrString(errors, "ConcurrentUse");
    InvalidOption = PyObject_GetAttrString(errors, "InvalidOption");
    ForkedError = PyObject_GetAttrString(errors, "ForkedError");
    CellBusy = PyObject_GetAttrString(errors, "CellBusy");
    CellEmpty = PyObject_GetAttrString(errors, "CellEmpty");
    CellMismatch = PyObject_GetAttrString(errors, "CellMismatch");
    Py_DECREF(errors);
    return CorruptTopic && RecordTooLarge && ClosedError && ConcurrentUse && InvalidOption && ForkedError && CellBusy &&
                   CellEmpty && CellMismatch
               ? 0
               : -1;
}

static int add_type(PyObject *module, PyType_Spec *spec, PyTypeObject **typep) {
    *typep = (PyTypeObject *)PyType_FromSpec(spec);
    return *typep == NULL ? -1 : PyModule_AddType(module, *typep);
}

static int fill_module(PyObject *module) {
    if (pthread_atfork(NULL, NULL, count_fork) != 0 || import_errors() != 0 || add_type(module, &Mapping_spec, &Mapping_Type) != 0 ||
        add_type(module, &Log_spec, &Log_Type) != 0 || add_type(module, &Record_spec, &Record_Type) != 0 ||
        add_type(module, &Feed_spec, &Feed_Type) != 0 || add_type(module, &Step_spec, &Step_Type) != 0 ||
        add_type(module, &Cursor_spec, &Cursor_Type) != 0 || add_type(module, &Appender_spec, &Appender_Type) != 0 ||
        add_type(module, &Reservation_spec, &Reservation_Type) != 0 || add_type(module, &Cell_spec, &Cell_Type) != 0)
        return -1;
    return PyModule_AddIntConstant(module, "LAYOUT_MAJOR", SHMD_LAYOUT_MAJOR) ||
                   PyModule_AddIntConstant(module, "LAYOUT_MINOR", SHMD_LAYOUT_MINOR) ||
                   PyModule_AddIntConstant(module, "HEADER_BYTES", SHMD_HEADER_BYTES) ||
                   PyModule_AddIntConstant(module, "SLOT_BYTES", sizeof(struct shmd_slot)) ||
                   PyModule_AddIntConstant(module, "RECORD_HEADER_BYTES", sizeof(struct shmd_record)) ||
                   PyModule_AddIntConstant(module, "RECORD_OVERHEAD_BYTES", SHMD_RECORD_OVERHEAD) ||
                   PyModule_AddIntConstant(module, "INCARNATION_MAX", SHMD_INCARNATION_MAX) ||
                   PyModule_AddIntConstant(module, "CELL_SIZE_MAX", SHMD_CELL_SIZE_MAX) ||
                   PyModule_AddIntConstant(module, "FLAG_WAIT", SHMD_FLAG_WAIT) ||
                   PyModule_AddIntConstant(module, "FLAG_EXCLUSIVE", SHMD_FLAG_EXCLUSIVE) ||
                   PyModule_AddIntConstant(module, "FLAG_FIFO", SHMD_FLAG_FIFO) ||
                   PyModule_AddIntConstant(module, "FULL", -SHMD_FULL) || PyModule_AddIntConstant(module, "BUSY", -SHMD_BUSY)
               ? -1
               : 0;
}

PyMODINIT_FUNC PyInit__core(void) {
    PyObject *module = PyModule_Create(&core_module);
    if (module != NULL && fill_module(module) != 0)
        Py_CLEAR(module);
    return module;
}
