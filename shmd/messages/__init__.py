"""Every message of the control protocol, typed. ``protocol`` turns them into packets and back.

| module       | messages about                                           |
|--------------|----------------------------------------------------------|
| `connection` | the connection, and whatever was opened through it       |
| `topics`     | topics, and who takes part in them                       |
| `words`      | none: what messages are made of                          |
"""

from __future__ import annotations

from typing import TypeAlias, Union

from shmd.messages.connection import Bye, Cancel, Close, Done, Hello, Refused, Resume, Resumed, Stop, Welcome
from shmd.messages.topics import (
    Declare,
    Joined,
    ListTopics,
    OpenPublisher,
    OpenSubscriber,
    Peek,
    PublisherGranted,
    PublishersGone,
    PublisherStat,
    RemoveTopic,
    ReportStall,
    StatReply,
    StatTopic,
    SubscriberGranted,
    SubscriberStat,
    TopicAdded,
    TopicGone,
    TopicInfo,
    TopicList,
    TopicOptions,
    TopicReply,
    TopicStat,
    Untethered,
    WaitSubscribers,
    Watch,
    WatchPublishers,
)
from shmd.messages.words import Lifetime, Notifier, WhenFull

__all__ = [
    "Bye",
    "Cancel",
    "Close",
    "Declare",
    "Done",
    "Event",
    "Hello",
    "Joined",
    "Lifetime",
    "ListTopics",
    "Notifier",
    "OpenPublisher",
    "OpenSubscriber",
    "Outbound",
    "Peek",
    "PublisherGranted",
    "PublisherStat",
    "PublishersGone",
    "Refused",
    "RemoveTopic",
    "Reply",
    "ReportStall",
    "Request",
    "Resume",
    "Resumed",
    "StatReply",
    "StatTopic",
    "Stop",
    "SubscriberGranted",
    "SubscriberStat",
    "TopicAdded",
    "TopicGone",
    "TopicInfo",
    "TopicList",
    "TopicOptions",
    "TopicReply",
    "TopicStat",
    "Untethered",
    "WaitSubscribers",
    "Watch",
    "WatchPublishers",
    "Welcome",
    "WhenFull",
]

Request: TypeAlias = Union[  # noqa: UP007 - msgspec needs a runtime union
    Hello,
    Declare,
    OpenPublisher,
    OpenSubscriber,
    Joined,
    Peek,
    Watch,
    WatchPublishers,
    Close,
    ListTopics,
    StatTopic,
    RemoveTopic,
    WaitSubscribers,
    Cancel,
    Resume,
    ReportStall,
    Bye,
    Stop,
]
Reply: TypeAlias = Union[  # noqa: UP007
    Welcome, Done, Refused, TopicReply, PublisherGranted, SubscriberGranted, Resumed, TopicList, StatReply
]
Event: TypeAlias = Union[TopicAdded, TopicGone, Untethered, PublishersGone]  # noqa: UP007
Outbound: TypeAlias = Union[Reply, Event]  # noqa: UP007
