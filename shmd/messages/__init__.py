"""Every message of the control protocol, typed. ``protocol`` turns them into packets and back.

| module       | messages about                                           |
|--------------|----------------------------------------------------------|
| `connection` | the connection, and whatever was opened through it       |
| `topics`     | topics, and who takes part in them                       |
| `segments`   | raw segments                                             |
| `words`      | none: what messages are made of                          |
"""

from __future__ import annotations

from typing import TypeAlias, Union

from shmd.messages.connection import Bye, Cancel, Close, Done, Hello, Refused, Resume, Resumed, Stop, Welcome
from shmd.messages.segments import (
    ListSegments,
    OpenSegment,
    RemoveSegment,
    SegmentCounters,
    SegmentGone,
    SegmentGranted,
    SegmentInfo,
    SegmentList,
    SegmentOptions,
    SegmentStatReply,
    SetSegment,
    StatSegment,
)
from shmd.messages.topics import (
    Declare,
    Joined,
    ListTopics,
    OpenPublisher,
    OpenSubscriber,
    Peek,
    PublisherGranted,
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
)
from shmd.messages.words import Backing, Lifetime, Notifier, WhenFull

__all__ = [
    "Backing",
    "Bye",
    "Cancel",
    "Close",
    "Declare",
    "Done",
    "Event",
    "Hello",
    "Joined",
    "Lifetime",
    "ListSegments",
    "ListTopics",
    "Notifier",
    "OpenPublisher",
    "OpenSegment",
    "OpenSubscriber",
    "Outbound",
    "Peek",
    "PublisherGranted",
    "PublisherStat",
    "Refused",
    "RemoveSegment",
    "RemoveTopic",
    "Reply",
    "ReportStall",
    "Request",
    "Resume",
    "Resumed",
    "SegmentCounters",
    "SegmentGone",
    "SegmentGranted",
    "SegmentInfo",
    "SegmentList",
    "SegmentOptions",
    "SegmentStatReply",
    "SetSegment",
    "StatReply",
    "StatSegment",
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
    Close,
    ListTopics,
    StatTopic,
    RemoveTopic,
    WaitSubscribers,
    Cancel,
    Resume,
    ReportStall,
    OpenSegment,
    ListSegments,
    StatSegment,
    SetSegment,
    RemoveSegment,
    Bye,
    Stop,
]
Reply: TypeAlias = Union[  # noqa: UP007
    Welcome,
    Done,
    Refused,
    TopicReply,
    PublisherGranted,
    SubscriberGranted,
    Resumed,
    TopicList,
    StatReply,
    SegmentGranted,
    SegmentList,
    SegmentStatReply,
]
Event: TypeAlias = Union[TopicAdded, TopicGone, Untethered, SegmentGone]  # noqa: UP007
Outbound: TypeAlias = Union[Reply, Event]  # noqa: UP007
